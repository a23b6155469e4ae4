"""Buying a marketplace's payment token, and paying with it."""
