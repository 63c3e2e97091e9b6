"""What stands in front of Cog's server: it checks every request before Cog sees it, limits what comes in, restarts a
server that has died or makes no progress, and cleans up. Without torch."""
