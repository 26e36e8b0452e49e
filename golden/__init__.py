"""Small models with golden records of them, and the recipes that both are made from: ``golden/README.md``."""
