"""Figures and pictures of HTML reports, made in Chromium."""
