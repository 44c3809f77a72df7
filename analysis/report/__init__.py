"""The comparison as tables, figures and one HTML page.

Read report (the list of blocks), blocks, tables, headline, figures with curves, instrument_blocks, size_figures; then
what draws them: drawing, page with page_data, plots.js, saving.js and report.js; print_figures and table_formats.
"""
