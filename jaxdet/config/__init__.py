"""Configs: trees of frozen dataclasses, linen modules and tuples, written as constructor calls in ``configs/*.py``.

A linen module is already a dataclass, so a config needs no language of its own, and this package only adds what a
command line and a checkpoint need: `override` changes a tree by dotted keys, `to_data` / `from_data` carry it as
JSON, `to_text` shows it, `differences` compares two.  Nothing here knows what the tree means.

Why own code: tyro and simple-parsing build flags from classes but not from an instance whose parts are chosen in a
file; ml_collections holds untyped dictionaries; fiddle and hydra rebuild objects by importing whatever the data
names, which a checkpoint from a stranger must not be able to do: here the user names the modules whose classes may be
rebuilt.  Type checks themselves are typeguard's.
"""

from jaxdet.config.data import described, differences, flat_settings, from_data, print_config, to_data, to_text
from jaxdet.config.load import config_name, config_names, config_text, load_config
from jaxdet.config.override import override
from jaxdet.config.tree import check
from jaxdet.config.trusted import trusted_modules

__all__ = [
    "check",
    "config_name",
    "config_names",
    "config_text",
    "described",
    "differences",
    "flat_settings",
    "from_data",
    "load_config",
    "override",
    "print_config",
    "to_data",
    "to_text",
    "trusted_modules",
]
