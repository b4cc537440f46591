from .samples import show as show
