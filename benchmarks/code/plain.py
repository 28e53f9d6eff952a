"""A script without MXNet: what is measured is all around it."""

from marks import mark

mark("first")
mark("last")
