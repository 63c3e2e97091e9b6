"""ADetailer: finds faces, hands or persons in a picture and inpaints each in its own crop.

After Bing-su/adetailer. The package knows nothing of the pipeline; ``modules/pipeline/adetailer.py`` is the stage.
"""
