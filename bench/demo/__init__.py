"""The built-in demo: a drawn world of overhead scenes and a tiny CLIP pre-trained on another world. No download."""

VERSION = "1"
"""Changes whenever the pictures or captions of a seed do; part of the demo's identity and of every run id."""
