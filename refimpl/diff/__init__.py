"""Diff: two conversions compared, each a bundle or a plan. Made from records alone."""

from __future__ import annotations

from refimpl.diff.differences import Difference, OpChange, SignatureDifference, difference
from refimpl.diff.sides import Side, side_of_bundle, side_of_plan

__all__ = ["Difference", "OpChange", "Side", "SignatureDifference", "difference", "side_of_bundle", "side_of_plan"]
