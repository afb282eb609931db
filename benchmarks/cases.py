"""The embedding steps that are worth timing: tables, dims, lookups, skew, bags, threads."""

import dataclasses
import functools
import os
import re

TARGET_TABLES = ("1000000x32", "10000000x64")
CRITEO = "criteo_kagglex16"
RULES = ("sgd", "adagrad", "row_wise_adagrad", "adam")


@dataclasses.dataclass(frozen=True)
class Case:
    """One embedding step.

    Attributes:
        table: `"ROWSxDIM"`; `"NUM*ROWSxDIM"`, several of one size; or
            `"criteo_kaggle[@SCALE]xDIM"`, the 26 of Criteo Kaggle.
        rule: One of `RULES`.
        lookups: Lookups a step, of all tables together.
        zipf: The exponent; 0 is uniform.
        bag: Lookups that are summed to one vector.
        threads: Threads of a subject.
    """

    table: str
    rule: str = "adagrad"
    lookups: int = 53_248
    zipf: float = 1.1
    bag: int = 1
    threads: int = 2

    @property
    def name(self):
        """What is unusual about it, in a few words."""
        words = [self.table, self.rule]
        defaults = Case(self.table)
        for field, word in (("lookups", "n"), ("zipf", "z"), ("bag", "bag"), ("threads", "t")):
            if getattr(self, field) != getattr(defaults, field):
                words.append(f"{word}{getattr(self, field)}")
        return " ".join(words)

    @property
    def dim(self):
        return _parse(self.table)[1]

    @property
    def cardinalities(self):
        return _parse(self.table)[0]

    def options(self):
        """Returns the command line that a subject gets."""
        options = ["--rule", self.rule, "--dim", self.dim, "--lookups", self.lookups]
        options += ["--zipf", self.zipf, "--bag", self.bag, "--threads", self.threads]
        return [*options, "--cardinalities", *self.cardinalities]


@functools.cache
def _parse(table):
    """Returns the cardinalities and the dim."""
    match = re.fullmatch(r"(?:criteo_kaggle(?:@([\d.]+))?|(?:(\d+)\*)?(\d+))x(\d+)", table)
    if match is None:
        raise ValueError(
            f"Expected a table like 1000000x32, 4*250000x32 or criteo_kaggle@0.1x16; got {table!r}."
        )
    scale, num, rows, dim = match.groups()
    if rows is not None:
        return (int(rows),) * int(num or 1), int(dim)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tf_slipstream.data import criteo_cardinalities

    return criteo_cardinalities(float(scale or 1)), int(dim)


def targets():
    """The steps that we hold ourselves to."""
    cases = [Case(table, rule) for table in TARGET_TABLES for rule in RULES]
    return [*cases, Case(CRITEO, "sgd"), Case(CRITEO), Case(CRITEO, "row_wise_adagrad")]


def small():
    """Tables so small that there is little to gain."""
    return [Case("10000x16", rule, lookups=n) for rule in RULES[:2] for n in (2048, 53_248)]


def rows():
    return [Case(f"{num_rows}x32") for num_rows in (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7)]


def dims():
    return [Case(f"{n}x{dim}") for n in (10**5, 10**6, 10**7) for dim in (16, 32, 64, 128)]


def lookups():
    return [Case("1000000x32", lookups=n) for n in (4096, 13_312, 53_248, 106_496, 200_000)]


def skew():
    return [Case("1000000x32", zipf=exponent) for exponent in (0.0, 1.05, 1.1, 1.3)]


def bags():
    return [Case("1000000x32", bag=bag) for bag in (1, 10, 50)]


def tables():
    return [Case(f"{num}*{10**6 // num}x32") for num in (1, 4, 16, 26, 64)]


def threads():
    return [Case(table, threads=n) for table in TARGET_TABLES for n in (1, 2)]


GRIDS = {
    "targets": targets,
    "small": small,
    "rows": rows,
    "dims": dims,
    "lookups": lookups,
    "skew": skew,
    "bags": bags,
    "tables": tables,
    "threads": threads,
}
