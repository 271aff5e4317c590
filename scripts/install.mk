# SPDX-License-Identifier: MIT
# Man pages and `make install`; included by the Makefile.

LIBDIR   ?= lib
INSTALL  ?= install
ROOT      = $(DESTDIR)$(PREFIX)
MANUALS  := $(patsubst docs/%.scd,$(BUILD)/man/%,$(wildcard docs/*.scd))

.PHONY: man install
## man             man pages (where scdoc is installed)
man: $(if $(shell command -v scdoc 2>/dev/null),$(MANUALS))

$(BUILD)/man/%: docs/%.scd
	@mkdir -p $(@D)
	$(Q)scdoc <$< >$@.new && mv $@.new $@

# Made anew each time: PREFIX is not what it was.
.PHONY: $(BUILD)/drover.pc
$(BUILD)/drover.pc: scripts/drover.pc.in
	@mkdir -p $(@D)
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@VERSION@|$(VERSION)|' \
		-e 's|@REQUIRES@|$(PKGS) $(ISAL)|' $< >$@

## install         PREFIX=/usr/local DESTDIR=: tools, library, header, drover.pc, man pages, completion
install: all man $(BUILD)/drover.pc
	$(Q)$(INSTALL) -d $(ROOT)/bin $(ROOT)/$(LIBDIR)/pkgconfig $(ROOT)/include \
		$(ROOT)/share/man/man1 $(ROOT)/share/bash-completion/completions
	$(Q)$(INSTALL) -m 755 $(BINS) $(ROOT)/bin/
	$(Q)$(INSTALL) -m 644 $(BUILD)/lib/libdrover.a $(ROOT)/$(LIBDIR)/
	$(Q)$(INSTALL) -m 755 $(BUILD)/lib/libdrover.so $(ROOT)/$(LIBDIR)/libdrover.so.$(VERSION)
	$(Q)ln -sf libdrover.so.$(VERSION) $(ROOT)/$(LIBDIR)/libdrover.so.0
	$(Q)ln -sf libdrover.so.0 $(ROOT)/$(LIBDIR)/libdrover.so
	$(Q)$(INSTALL) -m 644 include/drover.h $(ROOT)/include/
	$(Q)$(INSTALL) -m 644 $(BUILD)/drover.pc $(ROOT)/$(LIBDIR)/pkgconfig/
	$(Q)for page in $$(ls $(MANUALS) 2>/dev/null); do \
		$(INSTALL) -m 644 $$page $(ROOT)/share/man/man1/ || exit 1; done
	$(Q)for file in $(wildcard tools/completion/*.bash); do name=$${file##*/}; \
		$(INSTALL) -m 644 $$file $(ROOT)/share/bash-completion/completions/$${name%.bash} || exit 1; done
