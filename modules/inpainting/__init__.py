"""Inpainting of a part of a picture: what is cut out, at which size it is drawn, and how it is put back."""
