"""The HTTP server: open models and requests of several programs' forms go in; answers come out.

`worker` steps the engines, `models` and `contexts` say what a request is read after, `chat` makes
text of tokens as they come; `openai*`, `tgi*` and `ours` are the forms in which clients speak.
"""
