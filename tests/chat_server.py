"""A real server on this machine that speaks the chat-completions protocol."""

import contextlib
import http.server
import json
import threading
import time


def completion(text, **message):
    """What a server says when all is well."""
    message = {'role': 'assistant', 'content': text, **message}
    choice = {'index': 0, 'message': message, 'finish_reason': 'stop'}
    usage = {'prompt_tokens': 1, 'completion_tokens': 1, 'total_tokens': 2}
    head = {'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'judge'}
    return {**head, 'choices': [choice], 'usage': usage}


class Server:
    """Remembers requests; answers each as `reply(body, number)` says.

    A reply is a text, or (status, body, headers), the body bytes or something for JSON.
    """

    def __init__(self, reply):
        self.reply = reply
        self.requests = []
        self.bodies = []
        self.together = 0  # most requests at one time
        self._now = 0
        self._lock = threading.Lock()

    def answer(self, handler):
        size = int(handler.headers['Content-Length'])
        body = json.loads(handler.rfile.read(size))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.requests.append((handler.command, handler.path, handler.headers))
            self._now += 1
            self.together = max(self.together, self._now)
        reply = self.reply(body, number)
        with self._lock:
            self._now -= 1
        return (200, completion(reply), {}) if isinstance(reply, str) else reply


@contextlib.contextmanager
def serve(reply):
    """Runs a `Server` in a thread; gives it with its base URL in `url`."""
    server = Server(reply)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def do_POST(self):
            status, body, headers = server.answer(self)
            if status is None:  # hangs up
                self.close_connection = True
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {'Content-Length': len(data), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    server.url = f'http://127.0.0.1:{running.server_port}/v1'
    try:
        yield server
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def slowly(reply, seconds=0.05):
    """The same reply, a little later, so that requests meet."""

    def later(body, number):
        time.sleep(seconds)
        return reply(body, number)

    return later
