"""What is learnt: the model's modules, its plan of fragments, and the files it is kept in.

`plan` and `export` (but for `load_model`) need no torch: a daemon uses them without ever loading it.
"""
