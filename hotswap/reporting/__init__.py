"""A swapped network on one page, to be sent to a colleague: `hotswap.report`, one HTML file that needs nothing else.

`samples` are what the network is run on; `figures`, `cost` and `timing` what is measured; `outline` and `diagram` the
network drawn; `views` and `outputs` the pictures; `making` puts them together as `content`, and `page` lays that out.
"""

from hotswap.reporting.api import Report, report

__all__ = ["Report", "report"]
