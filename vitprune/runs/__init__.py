"""A recipe carried out: stages, engines, records. The only room that knows both a recipe and the library."""
