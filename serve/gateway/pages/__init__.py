"""The web pages and the API's document.

1. `static.py`: serves the pages (playground, console, API reference) and their scripts and styles.
2. `overview.py`: the state that the console shows.
3. `openapi.py`: the OpenAPI document.
4. `reference.py`: its texts and examples.
"""
