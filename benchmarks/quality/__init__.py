"""The parts of `benchmarks/quality.py`, which only puts them together.

Data sets, models, what is trained (`configurations`), the training loop with the controls that are
no part of the product, metrics, and the file of results. Nothing that another benchmark needs.
To add a data set: a function in `data_sets.py` that returns a `DataSet`, and its name in
`DATA_SETS`. To add a control: a field of `Configuration` and what it does in `controls.py`.
"""
