"""Renders plans, manifests and runs for people and for machines; decides nothing."""
