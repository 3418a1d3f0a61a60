"""A swapped network on one page, to be sent to a colleague: `hotswap.report`, one HTML file that needs nothing else.

`samples` are what the network is run on, `figures` and `cost` what is measured, `outline` and `diagram` the network
drawn, `windows` and `outputs` the pictures, `page` the file.
"""

from hotswap.report.api import Report, report

__all__ = ["Report", "report"]
