"""Delivery status notifications: whether one is due, how it is written, and how those of others are read.

RFC 3461, 3464, 6522, 6533; standards 9.
"""
