"""The web page that tries trained models on a person's own pictures; see docs/web_page.md.

Only `page.py` and `serving.py` know of gradio, which is an extra; everything else runs and is tested without it.
"""
