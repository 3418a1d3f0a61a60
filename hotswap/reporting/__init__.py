"""A swapped network on one page, to be sent to a colleague: `hotswap.report`, one HTML file that needs nothing else.

`samples` are what the network is run on; `figures`, `cost` and `timing` what is measured; `outline` and `diagram` the
network drawn; `views` and `outputs` the pictures; `assemble` puts them together as `content`, and `page` lays
that out.
"""
