"""What this release saved and published, small, as text. It must load in every later release.

A file here is never made anew: whoever changes what is saved adds the files of the new release, and
a later release reads the old ones, or refuses them with a sentence that its test names.

To add the files of a release: `python -m tests.golden.make NAME` under each Keras, after `NAME` is
in the lists of `tests/test_golden.py`.
"""
