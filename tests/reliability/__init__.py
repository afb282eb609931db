"""Faults, floods and hostile files: the short form of the campaign.

A module without `test_` is a part: `trial(seed, folder)` is one experiment drawn from its seed, and
raises where the product breaks a promise. Tests run a few seeds; `make campaign` runs them for an
hour (`campaign.py`). To add a part: the module, a test of a few of its seeds, and its line in
`campaign.PARTS`. docs/evidence/reliability.md has what was found.
"""
