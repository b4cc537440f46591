"""Small pretrained weights."""
