"""From what a caller wrote to a checked file on this disk: references, sources, downloads and their cache."""
