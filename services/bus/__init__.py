"""The bus: where accepted messages stand in order until every consumer group has read them."""
