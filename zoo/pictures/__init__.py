"""Reading pictures: finding their files, decoding them on all cores, and bringing them to a model's input.

Training and prediction read pictures by the same functions, so that a model sees the same pixels in both.
"""
