"""Advice: what keeps ops in TensorFlow, what that costs, and what to do about it. Made from records alone."""

from __future__ import annotations

from refimpl.advice.advise import advise, advise_all, advise_bundle
from refimpl.advice.records import Advice

__all__ = ["Advice", "advise", "advise_all", "advise_bundle"]
