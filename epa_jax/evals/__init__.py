"""What a trained policy learned."""
