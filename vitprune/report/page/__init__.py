"""The page's building blocks: tables, numbers, HTML, Markdown, SVG."""
