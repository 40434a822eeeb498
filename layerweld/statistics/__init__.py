"""Gram matrices and products of a layer group: measured, checked, added up, solved."""
