"""What a router of requests over replicas keeps and asks, whoever's router it is."""

from lengthwise.route.bookings import Bookings

__all__ = ["Bookings"]
