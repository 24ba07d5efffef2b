"""What a router of requests over replicas keeps and asks, whoever's router it is."""

from lengthwise.route.bookings import Bookings
from lengthwise.route.data_parallel import Ranks

__all__ = ["Bookings", "Ranks"]
