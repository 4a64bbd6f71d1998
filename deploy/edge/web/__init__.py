"""Models in the browser: the ES module `everlearn-web`, its pages, and the folder that a static server offers."""
