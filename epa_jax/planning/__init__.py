"""What a run needs of a machine that nobody has paid for yet."""
