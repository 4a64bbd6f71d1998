"""From files to their cleaned documents on disk.

collect         one file's, or one part's of a file, with what finding their duplicates needs
shards          where a large file is cut into parts
merged          a file's documents from those of its parts
second_pass     of a model over what is collected
harm_classifier what a classifier calls harmful is left out of what is collected
name_finder     names that a token classifier finds are masked
collect_child   parts and files in several processes at once
"""
