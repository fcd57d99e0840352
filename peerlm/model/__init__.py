"""What is learnt: the model's modules, its plan of fragments, and the files it is kept in.

`plan`, `tensors`, `export` (but for `load_model`), `llama` and `hf` need no torch: a daemon uses the first three without
ever loading it.
"""
