"""Whether what holds goes on holding: after a change, and when something goes wrong."""
