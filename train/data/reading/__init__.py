"""Files of many forms, read into examples one at a time, in bounded memory.

sources       which files there are
read          one file to examples, by its kind
lines         numbered lines, and the documents of a text
json_values   records of a JSON file
tables        rows of CSV and TSV
parquet       rows of Parquet
web_page      the text of an HTML page, made in a process of its own
warc          pages of a crawl
unpacked      how large a compressed file may become
forms         records to texts and conversations
"""
