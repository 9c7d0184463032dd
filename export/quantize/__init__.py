"""Recipes, and quantisation of graphs by them."""
