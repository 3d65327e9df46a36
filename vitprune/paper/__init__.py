"""The paper's own tables and figures on a model of yours."""
