"""What a log says about training on it, before any training: `tf-slipstream analyze`.

Belongs here: readers of logs of any size, statistics of their ids, the forecast of a policy, and
the verdict, all in bounded memory. NumPy alone; pyarrow and TensorFlow only for files that need
them. Nothing here trains or imports a model. What only prints is in `cli`.
To add a format: a module with a class that has `fields`, `has_label`, `has_time` and `chunks`, as
`text_log.TextLog`, and a line in `open_log`. To add a figure: compute it in `survey.py`, and show
it in `report_page.py`.
"""
