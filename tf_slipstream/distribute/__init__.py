"""Training on several devices and machines: what travels between them, and when.

Built on TensorFlow's own strategies and collectives, and on `ops` for the work on rows; no update
rule and no policy. To add a strategy, give it a module here and a place in `optimizer` that calls
it.
"""
