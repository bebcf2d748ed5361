"""Properties: whatever is drawn, the engine computes what the references say, and the laws hold."""
