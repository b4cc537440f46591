"""Every figure and image grid of the package, as arrays of pixels."""
