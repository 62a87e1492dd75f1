"""Blocks of ids that Postgres gives, and what to do when some of them were given before."""

from typing import Final, LiteralString

import psycopg

# A block of 1000 ids each for recipients and tokens.
BLOCKS: Final[LiteralString] = "SELECT next_recipient_block(), nextval('token_block')"
BLOCK = 1000
# Ids go on beyond all that are stored, and beyond those that this process was given.
RAISE_IDS: Final[LiteralString] = "SELECT raise_ids(%(recipients)s, %(tokens)s)"


def given_twice(error: Exception) -> bool:
    """Whether a key was there already: always one of ours, because an id that others choose may be there (ACC-04).

    The database went back, or its sequences were not copied with its rows. New ids, and it can be done again.
    """
    return isinstance(error, psycopg.errors.UniqueViolation)
