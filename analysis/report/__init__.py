"""The comparison as tables, figures and one HTML page.

Read report (the list of blocks), blocks, tables, headline, figures with curves and drawing, instrument_blocks,
held_out_blocks with heat_map, page.
"""
