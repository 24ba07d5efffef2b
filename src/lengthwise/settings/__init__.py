"""What may change while serving: the settings, their file, who watches it, and the switch.

fields   the settings, checked, and as they are written on a command line
file     the settings file, and who watches it; the status file, kept true; the kill switch
polling  looking at something again and again, in a thread of its own
"""

from lengthwise.settings.fields import (
    OVERTAKE_SHARE,
    LengthLogSettings,
    Settings,
    parse_settings,
    parse_spec,
)
from lengthwise.settings.file import off_path, read_settings, settings_of, status_path

__all__ = [
    "OVERTAKE_SHARE",
    "LengthLogSettings",
    "Settings",
    "off_path",
    "parse_settings",
    "parse_spec",
    "read_settings",
    "settings_of",
    "status_path",
]
