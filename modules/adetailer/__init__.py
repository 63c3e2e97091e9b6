"""The detail pass: finds faces and the like, and repaints each in a crop of its own."""
